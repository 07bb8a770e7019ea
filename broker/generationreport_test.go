package broker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
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

// TestAnOlderCopyIsTold: a node that refuses one connects to it to say so. A
// node that leads nothing has no other reason to connect, and a node stops only
// when a majority has told it.
func TestAnOlderCopyIsTold(t *testing.T) {
	store, err := wal.Open(t.TempDir(), wal.Options{Identity: wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	synctest.Test(t, func(t *testing.T) {
		greeted := 0
		g := &generations{
			identity: newIdentity(Options{Name: "n1", Logger: slog.New(slog.DiscardHandler)}, nil), services: services{advise: func(string, map[string]any) {}},
			peers: newPeers("1", func() uint64 { return 0 }),
			facts: func() cluster.Facts {
				return cluster.Facts{Nodes: map[string]cluster.Member{"n1": {ID: "1"}, "n2": {ID: "2"}}}
			},
			handshake: func(context.Context, string) error { greeted++; return nil },
		}
		if err := g.open(store); err != nil {
			t.Fatal(err)
		}
		hear := func() { g.peers.accept(announcement{Name: "n2", NodeID: "2", Instance: "2"}, 1, time.Now()) }
		hear()
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { g.run(ctx) })
		defer running.Wait()
		defer cancel()
		synctest.Wait()
		if err := g.check("n2", generationReport{id: "2", own: generationsOf(1, "ab")}.encode()); err != nil || greeted != 1 {
			t.Fatalf("n2 was greeted %d times, want 1: %v", greeted, err)
		}
		time.Sleep(reportInTransit)
		hear()
		for n := range 3 { // it is told at each attempt to connect
			if err := g.check("n2", generationReport{id: "2", own: generationsOf(1, "a")}.encode()); !errors.Is(err, ErrOlderCopy) {
				t.Fatalf("an older copy: %v", err)
			}
			time.Sleep(announceInterval)
			synctest.Wait()
			if greeted != n+2 {
				t.Errorf("n2 was greeted %d times, want %d", greeted, n+2)
			}
		}
	})
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
