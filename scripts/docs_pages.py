"""A hook of mkdocs: pages and linked files have their paths in the repository, so links work here and on the site alike."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SHOWN = (
    "*.md",
    "docs/*.md",
    "docs/*.js",
    "docs/*.css",
    "docs/*.svg",
    "docs/*.ipynb",
    "docs/results/**/*.*",
    "recipes/**/*.yaml",
    "switchkd_cli/*.yaml",
    "LICENSE",
    "switchkd_cli/playground/assets/NOTICE",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.config_file_path).parent
    for page in files.documentation_pages():
        files.remove(page)
    for path in sorted(path for pattern in SHOWN for path in root.glob(pattern)):
        files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


def on_page_content(html: str, **_: object) -> str:
    """Without the backslashes that GitHub needs in front of a | within code in a table."""
    return html.replace("\\|", "|")
