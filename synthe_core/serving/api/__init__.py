"""The engine over HTTP, in OpenAI's terms: what is asked, what is answered, and who may ask."""
