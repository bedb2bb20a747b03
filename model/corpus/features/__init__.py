"""What the quality filter measures of a document: the plain definition and its compiled twin."""
