"""Clinical-trial eligibility from a hospital's FHIR records."""

__version__ = "0.1.0"
