"""The text of a document, and the passages that it is read in."""

from synthe_core.data.document_text.passages import Passage as Passage
from synthe_core.data.document_text.passages import passages as passages
from synthe_core.data.document_text.reading import DocumentText as DocumentText
from synthe_core.data.document_text.reading import read_document as read_document
