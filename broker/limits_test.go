package broker_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// TestRequestsHaveLimits sends requests that are just small enough, and ones
// that are just too large.
func TestRequestsHaveLimits(t *testing.T) {
	_, nc := one(t, broker.Options{})
	headers := func(n, name int) (all []string) {
		for i := range n {
			all = append(all, fmt.Sprintf("X-%0*d", name-2, i), "v")
		}
		return all
	}
	for _, c := range []struct {
		what    string
		headers []string
		refused bool
	}{
		{"as many headers as may be, of the longest names", headers(subjects.MaxHeaders, subjects.MaxHeaderName), false},
		{"one header too many", headers(subjects.MaxHeaders+1, 10), true},
		{"a name too long by one byte", headers(1, subjects.MaxHeaderName+1), true},
	} {
		m := ask(t, nc, "cantus.append.0", "", c.headers...)
		batch := ask(t, nc, "cantus.batch.0", string(item("")), c.headers...)
		if c.refused {
			wantRefusal(t, m, subjects.BadRequest)
			wantRefusal(t, batch, subjects.BadRequest)
		} else if m.Header != nil || batch.Header != nil {
			t.Errorf("%s: refused: %s %s", c.what, m.Data, batch.Data)
		}
		var r subjects.BatchReply
		request(t, nc, message("cantus.batch.0", string(item("", c.headers...))), &r)
		if refused := r.Results[0].Error != nil; refused != c.refused {
			t.Errorf("%s, in a batch: %+v", c.what, r.Results)
		}
	}

	padded := func(body string, size int) string { return body + strings.Repeat(" ", size-len(body)) }
	for subject, body := range map[string]string{
		"cantus.get.0": `{"txid":1}`, "cantus.cursor.0.c": `{"txid":1}`, "cantus.info": "{}", "cantus.info.0": "", "$SRV.PING.cantus": "",
		"cantus.admin.status": "{}", "cantus.admin.trim.0": `{"before":1}`,
	} {
		if m := ask(t, nc, subject, padded(body, subjects.MaxBody)); m.Header.Get(subjects.HeaderErrorCode) != "" {
			t.Errorf("%s: %s", subject, m.Data)
		}
		wantRefusal(t, ask(t, nc, subject, padded(body, subjects.MaxBody+1)), subjects.TooLarge)
	}
}

// TestOperationsTakeTheirFieldsOnly checks that an operation refuses a field
// that it has no use for, and names it: the operator means something by it.
func TestOperationsTakeTheirFieldsOnly(t *testing.T) {
	_, nc := one(t, broker.Options{})
	for subject, bodies := range map[string][]string{
		"status":           {"null", "[]", "x", `{"node":"n1"}`},
		"cluster.balance":  {"null", "[]", "x", `{"node":"n1"}`, `{"standby":true}`},
		"cluster.add":      {`{"node":"n1","to":"n2"}`, `{"node":"n1","partition":0}`},
		"cluster.remove":   {`{"node":"n1","standby":true}`, `{"node":"n1","to":"n2"}`},
		"cluster.drain":    {`{"node":"n1","to":"n2"}`, `{"node":"n1","partition":0}`},
		"cluster.undrain":  {`{"node":"n1","to":"n2"}`},
		"cluster.promote":  {`{"node":"n1","standby":true}`},
		"cluster.transfer": {`{"partition":0,"to":"n1","node":"n1"}`},
		"cluster.move":     {`{"partition":0,"to":"n1","node":"n1","standby":true}`},
		"node.n1.rebuild":  {`{"partition":0,"node":"n1"}`},
		"trim.0":           {`{"before":1,"node":"n1"}`, `{"before":1,"bytes":1}`},
	} {
		for _, body := range bodies {
			var m *nats.Msg
			eventually(t, subject+" is served", func() (served bool) { // which the leader of the facts does soon
				var err error
				m, err = nc.Request("cantus.admin."+subject, []byte(body), patience)
				return err == nil
			})
			wantRefusal(t, m, subjects.BadRequest)
		}
	}
	for _, subject := range []string{"cantus.info", "cantus.info.0", "$SRV.PING", "$SRV.INFO.cantus", "$SRV.STATS"} {
		for _, body := range []string{"null", "7", `{"a":1}`, "x"} {
			wantRefusal(t, ask(t, nc, subject, body), subjects.BadRequest)
		}
	}
}
