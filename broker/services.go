package broker

// services are what every part of a node may ask of it.
type services struct {
	fail       func(error)                               // stops the node
	failed     func() error                              // why it was stopped, nil if it was not
	advise     func(event string, fields map[string]any) // publishes an advisory
	background func(func())                              // runs a function that Close waits for
	quit       <-chan struct{}                           // closed when the node begins to stop
}
