"""Reading FHIR R4: narrow resources, a patient's record, and the sources it comes from."""
