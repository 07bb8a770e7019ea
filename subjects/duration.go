package subjects

import (
	"fmt"
	"regexp"
	"strconv"
	"time"
)

var durationForm = regexp.MustCompile(`^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`)

// daysForm matches what is meant as days or weeks. Neither is a unit: a day
// need not have 24 hours.
var daysForm = regexp.MustCompile(`^([0-9]{1,6})(d|w)$`)

// ParseDuration parses a duration of a request: a number and a unit, such as
// "1.5s", or several, such as "1h30m". Unlike [time.ParseDuration] it accepts
// no sign, no bare "0" and no number without a digit before and after its
// point.
func ParseDuration(s string) (time.Duration, error) {
	if m := daysForm.FindStringSubmatch(s); m != nil {
		days, _ := strconv.Atoi(m[1])
		unit := "days are"
		if m[2] == "w" {
			days, unit = 7*days, "weeks are"
		}
		return 0, fmt.Errorf("%q is not a duration: a number and a unit, such as 500ms, 5s or 2m; %s no unit: write %dh", s, unit, 24*days)
	}
	if !durationForm.MatchString(s) {
		return 0, fmt.Errorf("%q is not a duration: a number and a unit, such as 500ms, 5s or 2m", s)
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is too long for a duration: at most 2562047h is allowed", s)
	}
	return d, nil
}
