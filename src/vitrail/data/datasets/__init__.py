"""Data sets, one file a layout.

| file | `--data` | layout |
|---|---|---|
| `base` | | base classes: `ImageSet`, `FileSet`, `ArraySet`, `ImageStream`, `TrainingStream`, `AnnotatedSet` |
| `digits` | digits | scikit-learn's handwritten digits, embedded |
| `folder` | folder | a folder per class, below `train` and `val` or divided by us |
| `cifar` | cifar10, cifar100 | torchvision's files, or one `.npz` |
| `imagenet` | imagenet, imagenet_v2 | `train/<wnid>` and `val/<wnid>`, or a flat `val` with a list of labels |
| `timm_dataset`, `webdataset` | timm | whatever timm reads: tar files, WebDataset shards, Hugging Face, TFDS |
| `coco`, `coco_files`, `coco_rle` | coco | COCO's annotation files: boxes, masks, panoptic segments |
| `coco_keypoints`, `keypoint_names` | coco | COCO's persons with keypoints |
| `segmentation`, `index_masks` | ade20k | folders of images and of masks of class indices |
| `market1501` | market1501 | crops of persons, named by identity and camera |
| `token_label_maps` | | label maps of a teacher, beside any of the above |
| `splits`, `division`, `classes`, `tables` | | names of splits, held-out shares, matching of classes, CSV lists |
"""
