//! Local models for sandboxes: a model back end behind an OpenAI-compatible endpoint.
