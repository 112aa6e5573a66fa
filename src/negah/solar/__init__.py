"""The product: windows to panels, square metres and a report."""
