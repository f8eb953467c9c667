"""Weakly-supervised positional contrastive learning (WSP): the method, its loop and its judge.

The names below are loaded when they are first asked for, so ``import wspnb`` costs nothing. The
views of a slice are :func:`wspnb.augment.augment`, which shares its name with its module.
"""

from importlib import import_module

_HOMES = {
    "kernels": ["same_label", "gaussian", "effective_positives"],
    "methods": ["pair_kernel", "loss_terms"],
    "losses": ["contrastive_loss"],
    "sampling": ["OneSlicePerPatient"],
    "models": ["TinyNet", "resnet18", "build_encoder", "build_head", "projection_head"],
    "momentum": ["Byol", "Moco"],
    "probe": ["cross_validate", "extract_features", "load_encoder"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__version__: str
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name == "__version__":
        return import_module("wspnb.files").package_version("wspnb")
    if name == "statistics":  # its old place, which programs of others still name
        return import_module("wspnb.results.statistics")
    if name not in _HOME:
        raise AttributeError(f"module 'wspnb' has no attribute {name!r}")
    return getattr(import_module(f"wspnb.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
