"""Pictures of finished runs, each as PNG and SVG: drawn without a screen, numbers from the run folders only."""
