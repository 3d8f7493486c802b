"""`switchkd export`: write a trained student as another runtime reads it."""

from pathlib import Path

from switchkd_cli import registry
from switchkd_cli.commands.evaluate import finished_run
from switchkd_cli.commands.options import ExportOptions
from switchkd_cli.errors import UserError, did_you_mean, shown
from switchkd_cli.recipe.named_files import SHIPPED, is_hub_id, locate
from switchkd_cli.scheduler import launch
from switchkd_cli.terminal import console


def export(options: ExportOptions) -> Path:
    """Write a run's student, or any saved model, for a runtime. Returns the folder, by default next to the model's."""
    run, to, bits = finished_run(options.run), options.to, options.bits
    model = str(run.model) if run else locate(options.run)
    known = registry.RUNTIMES
    problems = [f"--to: must be a runtime, got {to!r}{did_you_mean(to, known)}"] * (to not in known)
    out = options.out
    if out is None:
        ours = is_hub_id(options.run) or options.run.startswith(SHIPPED)
        problems += ["--out: needed, the model is in no folder of yours"] * ours
        out = Path(f"{model.rstrip('/')}-{to}" + f"-{bits}bit" * bool(bits))
    if problems:
        raise UserError(problems, hint=f"switchkd export {options.run} --to gguf --out exported")
    for note in launch.engine("export.runtimes").export(model, to, out, bits, square_images=options.square_images):
        console.say(f"note: {note}")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    console.say(f"files: {shown(out)} ({size / 2**20:,.1f} MiB); README.md there says how to load them")
    return out
