"""What turns a pyramid of maps into classes of pixels, boxes, masks, keypoints or embeddings: one file a head."""
