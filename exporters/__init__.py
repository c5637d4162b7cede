"""Writers of artifacts: ONNX graphs and safetensors checkpoints. Import as `compressor.exporters`."""
