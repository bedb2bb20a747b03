"""Exact and near duplicates over a corpus that grows: the stage, and the index that it keeps."""
