//! ONNX files: the protobuf messages, read and written with their fields intact.
