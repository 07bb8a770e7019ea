package subjects

import (
	"fmt"
	"math"
	"regexp"
	"time"
)

var timeForm = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$`)

// The first and the last time that has a number of Unix nanoseconds.
var (
	firstTime = time.Unix(0, math.MinInt64)
	lastTime  = time.Unix(0, math.MaxInt64)
)

// ParseTime parses a time of a request: RFC 3339 with at most nine decimals,
// such as "2026-11-01T08:00:00.5Z". It accepts the years from 1678 to 2261: the
// times that have a number of nanoseconds since 1970.
func ParseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || !timeForm.MatchString(s) {
		return time.Time{}, fmt.Errorf("%q is not a time in RFC 3339, such as 2026-11-01T08:00:00Z", s)
	}
	if t.Before(firstTime) || t.After(lastTime) {
		return time.Time{}, fmt.Errorf("%q is out of range: a time from 1678 to 2261 is allowed", s)
	}
	return t, nil
}
