package subjects_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/subjects"
)

func TestPackedGivesBackWhatItWasGiven(t *testing.T) {
	all := []subjects.Packed{
		{Txid: 1, Time: 0, Header: []byte{}, Payload: []byte{}},
		{Txid: 1<<64 - 1, Time: 1<<63 - 1, Header: []byte("NATS/1.0\r\n\r\n"), Payload: []byte("p")},
		{Txid: 7, Time: -1, Header: []byte{}, Payload: bytes.Repeat([]byte("x"), 1000)},
	}
	var message []byte
	for _, p := range all {
		message = subjects.AppendPacked(message, p)
	}
	for i, want := range all {
		got, rest, err := subjects.NextPacked(message)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%d: %+v, %v, want %+v", i, got, err, want)
		}
		message = rest
	}
	if len(message) > 0 {
		t.Errorf("%d bytes are left", len(message))
	}
}

func TestBrokenPacked(t *testing.T) {
	good := subjects.AppendPacked(nil, subjects.Packed{Txid: 7, Header: []byte("NATS/1.0\r\n\r\n"), Payload: []byte("payload")})
	huge := append(bytes.Clone(good[:16]), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	for want, message := range map[string][]byte{
		"ends within the 24 bytes":                   good[:23],
		"transaction 7 has 12 and 7 bytes, 18 are":   good[:len(good)-1],
		"has 4294967295 and 4294967295 bytes, 0 are": huge,
	} {
		if _, _, err := subjects.NextPacked(message); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%x: %v, want %q", message, err, want)
		}
	}
}

func FuzzNextPacked(f *testing.F) {
	f.Add(subjects.AppendPacked(nil, subjects.Packed{Txid: 7, Header: []byte("h"), Payload: []byte("p")}))
	f.Add(make([]byte, 24))
	f.Fuzz(func(t *testing.T, message []byte) {
		p, rest, err := subjects.NextPacked(message)
		if err != nil {
			return
		}
		if again := append(subjects.AppendPacked(nil, p), rest...); !bytes.Equal(again, message) {
			t.Errorf("%x became %x", message, again)
		}
	})
}
