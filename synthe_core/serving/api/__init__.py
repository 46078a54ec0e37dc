"""The engine over HTTP, with OpenAI's protocol: request and response formats, endpoints and access control."""
