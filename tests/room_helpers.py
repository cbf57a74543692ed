"""The rooms of the library and what each may import."""

#: room -> rooms it may import; `errors`, `version` and `utils` are open to all but each other
ALLOWED = {
    "errors": set(),
    "version": set(),
    "utils": set(),
    "layers": set(),
    "models": {"layers"},
    "heads": {"layers"},
    "config": set(),
    "data": {"config"},
    "factory": {"heads", "models"},
    "structures": {"data"},
    "metrics": {"config", "data", "structures"},
    "checkpoint": {"config", "factory", "models"},
    "tasks": {"checkpoint", "config", "data", "factory", "heads", "layers", "metrics", "structures"},
    "deploy.fuse": {"layers", "models"},
    "deploy.export": {"checkpoint", "config", "data", "deploy.fuse", "factory", "layers", "models", "tasks"},
    "engine": {"checkpoint", "config", "data", "deploy.export", "metrics", "structures", "tasks"},
    "analysis": {"checkpoint", "config", "data", "deploy.export", "engine", "layers", "models", "structures", "tasks"},
    "flops": {"factory", "layers", "models"},
    "benchmark": {"checkpoint", "config", "deploy.export", "deploy.fuse", "factory", "flops", "models"},
    "report": {
        "analysis",
        "benchmark",
        "checkpoint",
        "config",
        "data",
        "deploy.export",
        "engine",
        "flops",
        "metrics",
        "models",
        "structures",
        "tasks",
    },
}
OPEN_TO_ALL = {"errors", "version", "utils"}
