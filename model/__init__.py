"""Mathematics: the model, its data, its training and its kernels; knows of neither files of stages nor orchestration."""
