package broker

import (
	"slices"
	"strings"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// smallJSON decodes the body of a request other than a read.
func smallJSON(body []byte, v any) error {
	if len(body) > subjects.MaxBody {
		return subjects.Errorf(subjects.TooLarge, "the body has %d bytes: at most %d are allowed", len(body), subjects.MaxBody)
	}
	return strictJSON(body, v)
}

// noBody refuses a body with any field. An empty body and {} are the same.
func noBody(body []byte) error {
	var none *struct{}
	if err := smallJSON(body, &none); err != nil {
		return err
	}
	if none == nil && strings.TrimSpace(text(body)) != "" {
		return subjects.Errorf(subjects.BadRequest, "body: this request takes none: leave it empty, or send {}")
	}
	return nil
}

// operationBody decodes an operation's body, which may have only the fields
// that the operation takes.
func operationBody(m *natslink.Message, takes ...string) (r subjects.AdminRequest, err error) {
	if err := smallJSON(m.Payload, &r); err != nil {
		return r, err
	}
	for _, f := range []struct {
		name  string
		given bool
	}{{"node", r.Node != ""}, {"to", r.To != ""}, {"partition", r.Partition != nil}, {"standby", r.Standby}, {"key", r.Key != ""}} {
		if f.given && !slices.Contains(takes, f.name) {
			return r, subjects.Errorf(subjects.BadRequest, "body: this operation takes no field %q: it takes %s", f.name, listed(takes))
		}
	}
	return r, nil
}

func listed(fields []string) string {
	if len(fields) == 0 {
		return "none"
	}
	return strings.Join(fields, ", ")
}
