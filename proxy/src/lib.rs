//! Hands of the proxy: listeners, requests, endpoints.
