package subjects_test

import (
	"strings"
	"testing"

	"github.com/cantuslog/cantus/subjects"
)

func TestMove(t *testing.T) {
	for value, want := range map[string]subjects.Move{
		"billing=812":              {Cursor: "billing", Txid: 812},
		"a=b=1":                    {Cursor: "a=b", Txid: 1},
		"c,d=18446744073709551615": {Cursor: "c,d", Txid: 1<<64 - 1},
		"c=007":                    {Cursor: "c", Txid: 7},
	} {
		if m, err := subjects.ParseMove(value); err != nil || m != want {
			t.Errorf("%q: %+v, %v", value, m, err)
		}
	}
	for _, value := range []string{"", "=", "c", "c=", "c=0", "c=00", "c=+1", "c=-1", "c= 1", "c=1 ", "c=1x", "c=18446744073709551616", "=1", "a.b=1", "a b=1", ">=1", "*=1", strings.Repeat("x", 65) + "=1"} {
		if m, err := subjects.ParseMove(value); err == nil {
			t.Errorf("%q is %+v", value, m)
		}
	}
	if m, err := subjects.ParseMove(subjects.Move{Cursor: "c", Txid: 9}.String()); err != nil || m.Txid != 9 {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestOwners(t *testing.T) {
	for _, owner := range []string{"a", "5e2c,x", "session", subjects.SessionOwner("s"), subjects.SessionOwner(strings.Repeat("x", 64))} {
		if err := subjects.CheckOwner(owner); err != nil {
			t.Errorf("%q: %v", owner, err)
		}
	}
	for _, owner := range []string{"", "a.b", "session:", "session:a.b", "session:" + strings.Repeat("x", 65), strings.Repeat("x", 65)} {
		if subjects.CheckOwner(owner) == nil {
			t.Errorf("%q is an owner", owner)
		}
	}
	if subjects.IsSessionOwner("session") || subjects.IsSessionOwner("s") || !subjects.IsSessionOwner(subjects.SessionOwner("s")) {
		t.Error("an owner is taken for a session, or a session is not")
	}
}
