"""A breast-cancer detector for screening mammograms: from image files to an honest evaluation."""

import os

# Read by TensorFlow when it starts, which is after this package is imported.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # take GPU memory as needed, not all at once
# Fewer start-up lines; where no NVIDIA driver is, the line too that calls its absence an error.
os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "2" if os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg") else "3"
)
