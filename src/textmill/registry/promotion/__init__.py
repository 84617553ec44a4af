"""Champion and challenger: compare, promote, roll back."""
