//! Where facts come from and where writes go: an API server or a directory.
