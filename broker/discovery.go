package broker

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/micro"
	"github.com/nats-io/nuid"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
)

// discovery answers the NATS micro protocol, so that `nats micro` and every
// client's service browser list the node. The endpoints are not served by the
// micro library: its one goroutine and queue for each subscription would delay
// appends.
type discovery struct {
	id       string
	prefix   string // of the subjects
	identity micro.ServiceIdentity
	stats    *serviceStats
}

// serviceStats counts for the endpoints that discovery lists.
type serviceStats struct {
	mu        sync.Mutex
	started   time.Time
	endpoints map[string]*endpointStats
}

type endpointStats struct {
	requests  int
	took      time.Duration
	errors    int
	lastError string
}

func newServiceStats() *serviceStats {
	return &serviceStats{started: time.Now().UTC(), endpoints: map[string]*endpointStats{}}
}

// add counts n requests that together took a time.
func (s *serviceStats) add(endpoint string, n int, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.endpoint(endpoint)
	e.requests += n
	e.took += took
}

// fail counts a refusal.
func (s *serviceStats) fail(endpoint, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.endpoint(endpoint)
	e.errors++
	e.lastError = reason
}

func (s *serviceStats) endpoint(name string) *endpointStats {
	e := s.endpoints[name]
	if e == nil {
		e = &endpointStats{}
		s.endpoints[name] = e
	}
	return e
}

// startDiscovery answers questions for services until reads is closed.
func startDiscovery(d *discovery, reads connection, answers outbox) error {
	for verb, answer := range map[micro.Verb]func() any{
		micro.PingVerb: func() any { return micro.Ping{ServiceIdentity: d.identity, Type: micro.PingResponseType} },
		micro.InfoVerb: d.info, micro.StatsVerb: d.statistics,
	} {
		for _, kind := range []string{"", natsserver.ServiceName, natsserver.ServiceName + "." + d.id} {
			subject := strings.TrimSuffix(fmt.Sprintf("%s.%s.%s", micro.APIPrefix, verb, kind), ".")
			_, err := reads.Subscribe(subject, "", func(m *natslink.Message) {
				if m.Reply == "" {
					return
				}
				if err := noBody(m.Payload); err != nil {
					e := wireError(err)
					answers.Enqueue(appendRefusal(nil, m.Reply, e, map[string]any{"error": e}))
					return
				}
				answers.Enqueue(natslink.AppendPub(nil, m.Reply, mustJSON(answer())))
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func newDiscovery(prefix, node, cluster, version string, stats *serviceStats) *discovery {
	id := nuid.Next()
	return &discovery{
		id: id, prefix: prefix, stats: stats,
		identity: micro.ServiceIdentity{
			Name: natsserver.ServiceName, ID: id, Version: version, Metadata: map[string]string{"node": node, "cluster": cluster},
		},
	}
}

// endpoints are the names and subjects that discovery lists.
func (d *discovery) endpoints() [][2]string {
	p := d.prefix
	return [][2]string{
		{"append", p + ".append.*"}, {"batch", p + ".batch.*"}, {"read", p + ".read.*"}, {"replica_read", p + ".replica.read.*"},
		{"get", p + ".get.*"}, {"info", p + ".info"}, {"partition_info", p + ".info.*"}, {"cursor", p + ".cursor.*.*"},
		{"cursors", p + ".cursors.*"},
	}
}

func (d *discovery) info() any {
	i := micro.Info{
		ServiceIdentity: d.identity, Type: micro.InfoResponseType,
		Description: "A transaction log: append with locks, read in order.",
	}
	for _, e := range d.endpoints() {
		i.Endpoints = append(i.Endpoints, micro.EndpointInfo{Name: e[0], Subject: e[1]})
	}
	return i
}

func (d *discovery) statistics() any {
	s := micro.Stats{ServiceIdentity: d.identity, Type: micro.StatsResponseType, Started: d.stats.started}
	d.stats.mu.Lock()
	defer d.stats.mu.Unlock()
	for _, e := range d.endpoints() {
		es := &micro.EndpointStats{Name: e[0], Subject: e[1]}
		if c := d.stats.endpoints[e[0]]; c != nil {
			es.NumRequests, es.ProcessingTime = c.requests, c.took
			es.NumErrors, es.LastError = c.errors, c.lastError
			if c.requests > 0 {
				es.AverageProcessingTime = c.took / time.Duration(c.requests)
			}
		}
		s.Endpoints = append(s.Endpoints, es)
	}
	return s
}
