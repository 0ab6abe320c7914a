"""The known mistakes, by id: what each makes of the meta-gradient, and what is said of it."""

from npmeta.verification.doctor.faults.assembly import ASSEMBLY
from npmeta.verification.doctor.faults.backward import BACKWARD
from npmeta.verification.doctor.faults.base import Fault, Variant
from npmeta.verification.doctor.faults.forward import FORWARD
from npmeta.verification.doctor.faults.normalised import NORMALISED
from npmeta.verification.doctor.faults.scale import SCALE

__all__ = ["FAULTS", "Fault", "Variant"]

#: Every mistake by its id. Of several that fit, the one that comes first is named.
FAULTS: dict[str, Fault] = {
    fault.id: fault for fault in [*BACKWARD, *FORWARD, *NORMALISED, *ASSEMBLY, *SCALE]
}
