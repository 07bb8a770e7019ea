package broker

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// generationsOf returns generations from number first on, one for each byte of
// nonces.
func generationsOf(first uint64, nonces string) (all []wal.Generation) {
	for i := range nonces {
		all = append(all, wal.Generation{Number: first + uint64(i), Nonce: wal.Nonce{nonces[i]}})
	}
	return all
}

func TestGenerationReportsComeBackAsTheyWereSent(t *testing.T) {
	for _, c := range []generationReport{
		{},
		{id: "x", own: generationsOf(7, "abc"), start: 8},
		{id: "x", own: generationsOf(1, "a"), start: 1, yours: remembered{id: "y", newest: generationsOf(5, "q")[0], older: true}},
		{id: string(bytes.Repeat([]byte("i"), 255)), own: generationsOf(9, string(bytes.Repeat([]byte("n"), wal.GenerationsKept)))},
	} {
		b := c.encode()
		if len(b) > 4<<10 {
			t.Errorf("%d bytes are more than fit", len(b))
		}
		got, err := decodeGenerationReport(b)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("got %+v, %v, want %+v", got, err, c)
		}
		for n := range b {
			if _, err := decodeGenerationReport(b[:n]); err == nil {
				t.Errorf("the first %d of %d bytes are a report", n, len(b))
			}
		}
	}
}

func FuzzDecodeGenerationReport(f *testing.F) {
	f.Add(generationReport{id: "x", own: generationsOf(7, "abc"), start: 8, yours: remembered{id: "y", newest: generationsOf(5, "q")[0]}}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeGenerationReport(b)
		if err != nil {
			return
		}
		if again, err := decodeGenerationReport(c.encode()); err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("%+v came back as %+v, %v", c, again, err)
		}
	})
}

func TestWhichDirectoriesAreOlderCopies(t *testing.T) {
	shown := func(number uint64, nonce byte) wal.Generation {
		return wal.Generation{Number: number, Nonce: wal.Nonce{nonce}}
	}
	for what, c := range map[string]struct {
		own   []wal.Generation
		shown wal.Generation
		older bool
		fine  bool
	}{
		"never met":                          {generationsOf(1, "a"), wal.Generation{}, false, true},
		"as it was":                          {generationsOf(1, "ab"), shown(2, 'b'), false, true},
		"further":                            {generationsOf(1, "abcd"), shown(2, 'b'), false, true},
		"the right one is back":              {generationsOf(1, "abcd"), shown(2, 'b'), true, true},
		"away for long":                      {generationsOf(60, "abcd"), shown(2, 'b'), false, true},
		"an older copy":                      {generationsOf(1, "a"), shown(2, 'b'), false, false},
		"an older copy, started again":       {generationsOf(1, "ac"), shown(2, 'b'), false, false},
		"an older copy, started often":       {generationsOf(1, "acdefg"), shown(2, 'b'), false, false},
		"an older copy, started very often":  {generationsOf(60, "acdefg"), shown(2, 'b'), true, false},
		"one that does not know its own":     {nil, shown(2, 'b'), false, false},
		"an older copy from before the list": {generationsOf(60, "ab"), shown(90, 'b'), false, false},
	} {
		if err := follows(c.own, c.shown, c.older); (err == nil) != c.fine {
			t.Errorf("%s: %v", what, err)
		}
	}
}
