"""From panel area as seen from above to kilowatts peak: two assumptions, each made once and by name.

    module area = plan area * factor,    factor = 1 / cos(tilt)         what a tilted module hides from above
    kW peak     = module area / m2_per_kw

m2_per_kw is module area.  At the 1 kW of sun per m2 that modules are rated at it is 1 / efficiency, so it fell over the
years (`m2_per_kw(year)`).  A constant that was found as plan area per kW holds the tilt already: it belongs with the
tilt "none", or the tilt would count twice.

The survey's default of 7.29 m2 per kW, the median of 17,365 installations, is called module area there; the figures
behind it are not at hand, so we cannot tell whether it was module or plan area.  As module area it fits modules of the
2000s (13.7 % efficient); then the tilt "none" takes panels for flat and understates the power of those on roofs.

Limits.  A factor at the middle tilt is a little less than the mean of factors: 2 % less for tilts of 20 +- 10 degrees.
`interval` multiplies bounds of 90 % with each other, so it is wider than 90 % needs; that modules differ from their
year's median is not in it.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy import ndarray

from negah.errors import InputError

STEEPEST = 75.0  # degrees; there, about a quarter of a module is left to see from above
ASSUMED = (20.0, 10.0)
"""Degrees of tilt and their spread, our assumption for roofs.  Two thirds of California's fixed systems of 2014, not
only residential ones, lay between 11 and 30 degrees (EIA, Today in Energy 18871, November 2014, of the California Solar
Statistics), about as in a normal distribution of this middle and spread.  NREL's Annual Technology Baseline (2017 and
2019) models residential systems at 25 degrees."""
Z90 = 1.645  # standard deviations on either side that hold 90 % of a normal distribution

EFFICIENCY = {2002: 0.134, 2010: 0.140, 2017: 0.174, 2018: 0.184, 2020: 0.198, 2021: 0.201, 2022: 0.208}
"""Median efficiency of modules by the year they were installed in; `m2_per_kw` says where each is from."""

M2_PER_KW = 7.29  # of one kW peak, for all years

Area = TypeVar("Area", float, ndarray)


@dataclass(frozen=True)
class Tilt:
    """Degrees that modules lean from the horizontal; spread is one standard deviation between systems."""

    kind: Literal["none", "given", "assumed"]
    degrees: float
    spread: float

    def __post_init__(self):
        if not 0 <= self.degrees <= STEEPEST:  # NaN is not either
            raise InputError(f"a tilt is from 0 to {STEEPEST:g} degrees, not {self.degrees:g}")
        if not 0 <= self.spread < math.inf:
            raise InputError(f"the spread of a tilt is a number of degrees from 0 on, not {self.spread:g}")
        if self.kind == "none" and (self.degrees or self.spread):
            raise InputError(f'the tilt "none" has no degrees, but was given {self.degrees:g} ± {self.spread:g}')

    @property
    def factor(self) -> float:
        """Module area per plan area."""
        return _factor(self.degrees)

    @property
    def range(self) -> tuple[float, float]:
        """Factors between which nine in ten systems lie."""
        low, high = self.degrees - Z90 * self.spread, self.degrees + Z90 * self.spread
        return _factor(max(low, 0.0)), _factor(min(high, STEEPEST))

    @property
    def words(self) -> str:
        if self.kind == "none":
            return "none: areas as seen from above"
        spread = f" ± {self.spread:g}°" if self.spread else ""
        between = f" (90 %: {self.range[0]:.2f} to {self.range[1]:.2f})" if self.spread else ""
        return f"{self.kind}: {self.degrees:g}°{spread}, module area is {self.factor:.2f} times plan area{between}"


def _factor(degrees: float) -> float:
    return 1 / math.cos(math.radians(degrees))


def tilt(text: str) -> Tilt:
    """A tilt from the command line: "none", "assumed", or degrees ("25", "25°")."""
    word = text.strip().lower()
    if word == "none":
        return Tilt("none", 0.0, 0.0)
    if word == "assumed":
        return Tilt("assumed", *ASSUMED)
    try:
        degrees = float(word.removesuffix("°"))
    except ValueError:
        degrees = math.nan
    if not 0 <= degrees <= STEEPEST:
        raise InputError(f'a tilt is "none", "assumed" or degrees from 0 to {STEEPEST:g}, not {text!r}')
    return Tilt("given", abs(degrees), 0.0)  # abs: no "-0°"


def m2_per_kw(year: int) -> float:
    """Module area of 1 kW peak for modules installed in `year`: 1 / median efficiency, linear between known years.

    Berkeley Lab, Tracking the Sun, distributed systems in the United States, as summaries of its editions quote it:
    13.4 % in 2002 and 19.8 % in 2020 (2021 edition), 18.4 % in 2018, "a full percentage point" more than in 2017 (2019
    edition), 20.1 % in 2021 (2022 edition), 20.8 % in 2022 (2023 edition); the last two, at least, are of residential
    systems.  Editions differ on 2002: 12.7 to 13.6 %.  2010 is ours, rounded, between the means of multicrystalline
    (13.7 %) and monocrystalline modules (14.4 %) that are quoted from NREL.  Before 2002 and after 2022 the end values
    stand: the further away, the worse.
    """
    if not 1980 <= year <= 2100:
        raise InputError(f"modules were installed in a year from 1980 to 2100, not {year}")
    return 1 / float(np.interp(year, list(EFFICIENCY), list(EFFICIENCY.values())))


def power_of(given: float | None, *, year: int | None, tilt: Tilt) -> "Power":
    """Power from what the command line says: an area, a year, or neither."""
    if given is not None and year is not None:
        raise InputError("--m2-per-kw and --year both say how large 1 kW is: give one of them")
    if year is not None:
        return Power(m2_per_kw(year), tilt, year)
    return Power(M2_PER_KW if given is None else given, tilt)


@dataclass(frozen=True)
class Power:
    """What turns plan area into kilowatts peak.  year: the one m2_per_kw was taken for, None where it was given."""

    m2_per_kw: float
    tilt: Tilt
    year: int | None = None

    def __post_init__(self):
        if not 0 < self.m2_per_kw < math.inf:
            raise InputError(f"the module area of 1 kW must be a positive area in m2, not {self.m2_per_kw:g}")
        if self.year is not None and not math.isclose(self.m2_per_kw, m2_per_kw(self.year)):
            raise InputError(
                f"1 kW has {m2_per_kw(self.year):.2f} m2 of modules of {self.year}, not {self.m2_per_kw:g}: give the "
                "area or the year"
            )

    def kw(self, plan_m2: Area) -> Area:
        """Kilowatts peak; NaN, an area that is not known, stays NaN."""
        return plan_m2 * self.tilt.factor / self.m2_per_kw

    def interval(self, low_m2: Area, high_m2: Area) -> tuple[Area, Area]:
        """Bounds in kilowatts peak, from bounds of the plan area and the range of the tilt."""
        low, high = self.tilt.range
        return low_m2 * low / self.m2_per_kw, high_m2 * high / self.m2_per_kw

    def words(self) -> dict[str, str]:
        """The assumptions, for a table of where figures come from."""
        source = (
            "one figure for all years"
            if self.year is None
            else f"modules of {self.year}, {1 / self.m2_per_kw:.1%} efficient"
        )
        return {"tilt": self.tilt.words, "module area per kW": f"{self.m2_per_kw:.4g} m² ({source})"}
