package client

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

var replies = []string{
	`{"partition":0,"results":[{"index":0,"count":3,"txid":813,"time":"2026-11-22T09:00:00.123456789Z"}],"high_water_mark":815}`,
	`{"partition":3,"results":[{"index":0,"count":1,"txid":790,"time":"2026-11-22T08:59:59.5Z","duplicate":true},{"index":1,"count":1,"error":{"code":409,"reason":"conflict","message":"a } \"{\" \\","lock":"a.\u003e","txid":815,"conflicts":[{"lock":"a.>","mode":"write","txid":815}]}},{"index":2,"count":1,"txid":5}],"high_water_mark":18446744073709551615}`,
}

// The scanner itself, and not encoding/json, reads what nodes write.
func TestScannerReadsWhatNodesWrite(t *testing.T) {
	for _, reply := range replies {
		s := scanner{rest: []byte(reply)}
		if _, ok := s.batch(nil); !ok {
			t.Errorf("not read: %s; stopped before %s", reply, s.rest)
		}
	}
}

func TestOtherFormsAreReadToo(t *testing.T) {
	r, err := decodeBatch([]byte(`{ "results" : [ {"count":2, "index":1, "txid":7, "new":1} ], "partition":1 }`), nil)
	if err != nil || r.Partition != 1 || len(r.Results) != 1 || r.Results[0].Txid != 7 || r.Results[0].Count != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

// FuzzScanner checks that encoding/json agrees with everything that the scanner
// reads.
func FuzzScanner(f *testing.F) {
	for _, reply := range replies {
		f.Add([]byte(reply))
		f.Add([]byte(reply[:len(reply)-9]))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		s := scanner{rest: body}
		got, ok := s.batch(nil)
		if !ok {
			return
		}
		var want subjects.BatchReply
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("the scanner reads what is no JSON (%v): %q", err, body)
		}
		for _, runs := range [][]subjects.BatchRun{got.Results, want.Results} {
			for i := range runs {
				runs[i].Time = runs[i].Time.Round(0).In(time.UTC)
			}
		}
		if len(got.Results) == 0 && len(want.Results) == 0 {
			got.Results, want.Results = nil, nil
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("scanner %+v\njson %+v\n%q", got, want, body)
		}
	})
}

func TestBackoffStaysWithinItsBounds(t *testing.T) {
	least, most := 50*time.Millisecond, 2*time.Second
	for n := 1; n < 200; n++ {
		d := backoff(n, least, most)
		if d < least/2 || d > most {
			t.Errorf("after %d failures: %v", n, d)
		}
		if n > 10 && d < most/2 {
			t.Errorf("after %d failures only %v", n, d)
		}
	}
}
