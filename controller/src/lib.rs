//! Hands of the controller.
