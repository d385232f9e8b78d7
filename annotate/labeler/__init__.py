"""Fit an SVM on people's judgments and label pairs with it."""
