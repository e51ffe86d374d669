//! The custom resources that users write.
