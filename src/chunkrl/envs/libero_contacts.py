"""Who touches whom in a LIBERO scene: robosuite's question on MuJoCo's array of contacts."""

from __future__ import annotations

from typing import Any

import numpy as np


class Contacts:
    """Answers `check_contact` of a robosuite environment, which grasps and LIBERO's predicates ask several times a
    step, with its answers, without a loop over contacts and names in Python."""

    def __init__(self, domain: Any) -> None:
        """domain: a robosuite environment, which asks here from now on."""
        model, self._data = domain.sim.model._model, domain.sim.data._data
        self._ids = {model.geom(number).name: number for number in range(model.ngeom)}
        self._num = model.ngeom
        self._masks: dict[Any, np.ndarray] = {}
        domain.check_contact = self.check

    def check(self, geoms_1: Any, geoms_2: Any = None) -> bool:
        """Whether a geom of the first group touches one of the second (None: any). A group is a name, names, or a
        robosuite model, whose contact geoms it is."""
        pairs = self._data.contact.geom
        if not len(pairs):
            return False
        first, one, two = self._mask(geoms_1), pairs[:, 0], pairs[:, 1]
        if geoms_2 is None:
            return bool((first[one] | first[two]).any())
        second = self._mask(geoms_2)
        return bool(((first[one] & second[two]) | (first[two] & second[one])).any())

    def _mask(self, geoms: Any) -> np.ndarray:
        """bool [ngeom]. A model keeps its geoms as long as there is a simulator."""
        key = tuple(geoms) if isinstance(geoms, (list, tuple)) else geoms
        if key not in self._masks:
            names = [geoms] if isinstance(geoms, str) else getattr(geoms, "contact_geoms", geoms)
            mask = np.zeros(self._num, bool)
            mask[[self._ids[name] for name in names if name in self._ids]] = True
            self._masks[key] = mask
        return self._masks[key]
