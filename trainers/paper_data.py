"""The datasets of the papers' presets: none of them comes with this package, so each preset asks for `--dataset`."""

from __future__ import annotations

from trainers.cli import Required

GOLF = Required(
    "the stabilised golf videos of Vondrick et al. 2016 (frames-stable-many/, JPEG files with square frames one below the other): "
    "--dataset=<folder of such strips, one per clip>"
)
UCF101 = Required(
    "UCF-101, unpacked (UCF-101/<class>/v_<class>_gGG_cCC.avi): --dataset=<that folder, with one folder of videos per class>"
)
MOVING_MNIST = Required(
    "Moving MNIST (mnist_test_seq.npy, uint8 (20, 10000, 64, 64)) with the video first and three channels: --dataset=<an .npy "
    "file, uint8 (10000, 20, 64, 64, 3)>"
)
MUG = Required(
    "the MUG facial expression database, available on request, cropped to faces: --dataset=<folder per expression, holding a "
    "folder of images or a video file per take>"
)
NIR = Required(
    "the near-infrared videos of Oulu-CASIA, available on request, cropped to faces: --dataset=<folder with a folder of images "
    "or a video file per video>"
)
CHAIRS = Required(
    "820 of the rendered chairs of Aubry et al. 2014 (rendered_chairs/<chair>/renders/*.png), cropped to the middle 400x400 "
    "pixels: --dataset=<folder with a folder of images per chair, in the order of the views>"
)
IMAGES_RUN = Required(
    "a run to begin with, trained on single images (--preset=paper_mug_images): --init_from=<its run folder>"
)
