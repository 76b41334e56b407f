"""Who is who in a run that takes nothing in: the cohort's patients and those of the run, in memory alone."""

from sqlalchemy import Table, create_engine, select
from sqlalchemy.orm import Session, make_transient
from sqlalchemy.pool import StaticPool

from busgen_client import patients
from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import MarkRow, PatientRow
from busgen_client.database import Base
from busgen_client.intake.findings import Code, QuarantineError


class Guests:
    """Patients as intake would tell them apart if it took in what comes here.

    Args:
        store: The cohort; it is read once and not changed.
    """

    def __init__(self, store: CohortStore) -> None:
        self._store, self._engine = store, create_engine("sqlite://", poolclass=StaticPool)
        Base.metadata.create_all(self._engine, tables=[table for kind in (PatientRow, MarkRow) if isinstance(table := kind.__table__, Table)])
        with Session(store.engine) as cohort, Session(self._engine) as ours:
            for row in (*cohort.scalars(select(PatientRow)), *cohort.scalars(select(MarkRow))):
                cohort.expunge(row)
                make_transient(row)
                ours.add(row)
            ours.commit()

    def key_of(self, person: patients.Person) -> str:
        """The patient's key; what the object says of the patient is remembered for the next.

        Raises:
            QuarantineError: patient-unsure or consent-withdrawn.
        """
        if self._store.withdrawn(person):
            raise QuarantineError(Code.CONSENT_WITHDRAWN)
        with Session(self._engine) as session:
            patient_key = patients.resolve(session, person)
            if patient_key is None:
                raise QuarantineError(Code.PATIENT_UNSURE)
            session.merge(PatientRow(patient_key=patient_key, role="", rule=""))
            patients.remember(session, patient_key, person)
            session.commit()
        return patient_key
