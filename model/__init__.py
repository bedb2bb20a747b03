"""Mathematics: the model, its data, its training and its kernels; knows neither stages nor orchestration."""
