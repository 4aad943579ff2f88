"""Models as files of LiteRT, once TensorFlow Lite."""
