package subjects_test

import (
	"fmt"
	"testing"

	"github.com/cantuslog/cantus/subjects"
)

func TestParseAtomic(t *testing.T) {
	for _, c := range []struct {
		value string
		txid  uint64
		valid bool
	}{
		{"813-815", 813, true},
		{"813-815", 815, true},
		{"1-2", 1, true},
		{"1-5000", 5000, true},
		{"18446744073709551614-18446744073709551615", 18446744073709551615, true},
		{"813-815", 812, false},
		{"813-815", 816, false},
		{"813-813", 813, false},
		{"815-813", 814, false},
		{"0-2", 1, false},
		{"1-5001", 1, false},
		{"01-2", 1, false},
		{"1-02", 1, false},
		{"+1-2", 1, false},
		{"1--2", 1, false},
		{"1-2-3", 1, false},
		{"1-2 ", 1, false},
		{" 1-2", 1, false},
		{"1", 1, false},
		{"-", 1, false},
		{"", 1, false},
		{"true", 1, false},
		{"1-18446744073709551616", 1, false},
	} {
		first, last, err := subjects.ParseAtomic(c.value, c.txid)
		if (err == nil) != c.valid {
			t.Errorf("%q of %d: %v", c.value, c.txid, err)
		}
		if c.valid && fmt.Sprintf("%d-%d", first, last) != c.value || !c.valid && (first != 0 || last != 0) {
			t.Errorf("%q of %d is %d to %d", c.value, c.txid, first, last)
		}
	}
}
