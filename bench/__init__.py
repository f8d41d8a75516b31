"""Measures the service beside other servers that do the same job, in one sitting: `make bench`.

docs/performance.md has the method and the figures. Nothing here is imported by the service.
"""
