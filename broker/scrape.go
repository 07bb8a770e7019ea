package broker

import "github.com/prometheus/client_golang/prometheus"

// scraped describes a metric whose value is read off the node when it is
// scraped. Reading it neither reads the log nor holds a lock for long.
type scraped struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func scrapedGauge(name, help string, labels ...string) scraped {
	return scraped{prometheus.NewDesc("cantus_"+name, help, labels, nil), prometheus.GaugeValue}
}

func scrapedCounter(name, help string, labels ...string) scraped {
	return scraped{prometheus.NewDesc("cantus_"+name, help, labels, nil), prometheus.CounterValue}
}

// send sends a value. It leaves out one whose labels are no valid text.
func (s scraped) send(to chan<- prometheus.Metric, value float64, labels ...string) {
	if m, err := prometheus.NewConstMetric(s.desc, s.kind, value, labels...); err == nil {
		to <- m
	}
}

// bit returns 1 for true.
func bit(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
