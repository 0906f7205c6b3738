"""Programs for a node that has nothing but a Python (2.7, or 3.5 and later): each is one file that needs no other.

They run where they are copied to, or without a copy: ``ssh node 'python3 - make /data' < data_manifest.py``.
"""
