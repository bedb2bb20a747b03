"""Mathematics: the model, its data, its training and its kernels; knows neither stages nor orchestration."""

from model.kernels.reproducible import fix_order_of_sums

fix_order_of_sums()  # here, so that no way in can forget it
