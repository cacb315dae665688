"""Use cases, shared by the edges. They know protocols, never concrete adapters."""
