package testkit_test

import (
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
)

func TestLong(t *testing.T) {
	for value, want := range map[string]bool{"": false, "0": false, "1": true, "true": true} {
		t.Setenv("CANTUS_LONG", value)
		if testkit.Long() != want {
			t.Errorf("with %q: %v", value, !want)
		}
	}
	t.Setenv("CANTUS_LONG", "yes, please")
	defer func() {
		if recover() == nil {
			t.Error("Long does not panic")
		}
	}()
	testkit.Long()
}

func TestSized(t *testing.T) {
	t.Setenv("CANTUS_LONG", "1")
	if got := testkit.Sized(1, 2, 3); got != 3 {
		t.Errorf("at full length %d", got)
	}
	t.Setenv("CANTUS_LONG", "")
	want := 2
	if testing.Short() {
		want = 1
	}
	if got := testkit.Sized(1, 2, 3); got != want {
		t.Errorf("not at full length %d, want %d", got, want)
	}
}
