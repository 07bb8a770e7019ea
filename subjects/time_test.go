package subjects_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

func TestParseTime(t *testing.T) {
	november := time.Date(2026, 11, 1, 8, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"2026-11-01T08:00:00Z":           november,
		"2026-11-01T08:00:00.5Z":         november.Add(time.Second / 2),
		"2026-11-01T08:00:00.123456789Z": november.Add(123456789),
		"2026-11-01T10:00:00+02:00":      november,
		"2026-11-01T00:30:00-07:30":      november,
		"1969-12-31T23:59:59.999999999Z": time.Unix(0, -1),
		"1678-01-01T00:00:00Z":           time.Date(1678, 1, 1, 0, 0, 0, 0, time.UTC),
		"2261-12-31T23:59:59Z":           time.Date(2261, 12, 31, 23, 59, 59, 0, time.UTC),
	} {
		if got, err := subjects.ParseTime(text); err != nil || !got.Equal(want) || time.Unix(0, got.UnixNano()).Compare(got) != 0 {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "now", "2026-11-01", "2026-11-01T08:00Z", "2026-11-01T08:00:00", "2026-11-01 08:00:00Z", "2026-11-01t08:00:00z", "2026-11-01T08:00:00,5Z",
		"2026-11-01T08:00:00.1234567890Z", "2026-11-31T08:00:00Z", "2026-13-01T08:00:00Z", "2026-11-01T24:00:00Z", "2026-11-01T08:00:60Z",
		"2026-11-01T08:00:00+2:00", "2026-11-01T08:00:00Z ", " 2026-11-01T08:00:00Z", "+2026-11-01T08:00:00Z", "12026-11-01T08:00:00Z", "2026-11-01T8:00:00Z", "1793520000",
	} {
		if got, err := subjects.ParseTime(text); err == nil || !strings.Contains(err.Error(), "RFC 3339, such as") {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"1677-09-21T00:12:43Z", "2262-04-11T23:47:17Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"} {
		if got, err := subjects.ParseTime(text); err == nil || !strings.Contains(err.Error(), "from 1678 to 2261") {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
}
