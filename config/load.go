package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// Source is where settings come from: a set of flags that is not parsed yet,
// and through it the environment and a file.
type Source struct {
	config  *textFlag
	values  map[string]*textFlag // by key
	lists   map[string]*listFlag // by key
	members *listFlag
}

// given is a value as a user wrote it, and where: "pgfailproxy.yaml:3",
// "PGFAILPROXY_INTERVAL", "--interval".
type given struct {
	key, text, origin string
}

// Flags adds a flag for every setting, and --config, to fs. After fs is parsed,
// Load reads them.
func Flags(fs *pflag.FlagSet) *Source {
	src := &Source{
		config:  &textFlag{kind: "path"},
		values:  make(map[string]*textFlag),
		lists:   make(map[string]*listFlag),
		members: &listFlag{kind: "name=connection"},
	}
	fs.Var(src.config, configKey, "YAML file with settings")
	for _, s := range settings {
		usage := strings.ReplaceAll(s.help, "`", "") // pflag takes them for the value's name
		if s.zero != "" {
			usage += "; " + s.zeroWord() + ": " + s.zero
		}
		if s.key == membersKey {
			fs.Var(src.members, s.flag(), "a PostgreSQL server, a name and a libpq connection string; once for each")
			continue
		}
		if s.clear != nil {
			f := &listFlag{kind: s.kind}
			src.lists[s.key] = f
			fs.Var(f, s.flag(), usage+"; once for each")
			continue
		}
		f := &textFlag{kind: s.kind, text: s.def}
		src.values[s.key] = f
		fs.Var(f, s.flag(), usage)
		if s.kind == "bool" {
			fs.Lookup(s.flag()).NoOptDefVal = "true"
		}
	}
	return src
}

// Load reads the settings: a flag goes before the environment, that before the
// file, and that before the default. Members and lists are replaced as a whole:
// those of flags replace those of the environment, those replace those of the
// file.
// environ is as from os.Environ. The libpq variables (PGPASSWORD, PGSSLMODE,
// ...), the password file and the service file complete the connection strings.
//
// An error is one line that names the setting and where it was written, says
// what to do, and holds no secret.
func (src *Source) Load(environ []string) (*Config, error) {
	env, err := readEnviron(environ)
	if err != nil {
		return nil, err
	}
	file := env.config
	if src.config.set {
		file = given{key: configKey, text: src.config.text, origin: "--" + configKey}
	}
	var fromFile layer
	if file.origin != "" {
		if fromFile, err = readFile(file); err != nil {
			return nil, err
		}
	}

	c := &Config{File: file.text}
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	var members []given
	for _, l := range []layer{fromFile, env.layer, src.layer()} {
		for _, v := range l.values {
			if err := lookup(v.key).set(c, v.text); err != nil {
				return nil, fmt.Errorf("%s: %w", v.origin, err)
			}
		}
		if err := c.setLists(l); err != nil {
			return nil, err
		}
		if len(l.members) > 0 {
			members = l.members
		}
	}
	if c.Members, err = parseMembers(members); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

// setDefaults fails only if the table is wrong.
func (c *Config) setDefaults() error {
	for _, s := range settings {
		if s.key == membersKey || s.clear != nil {
			continue
		}
		if err := s.set(c, s.def); err != nil {
			return fmt.Errorf("default of %s: %w", s.key, err)
		}
	}
	return nil
}

// setLists replaces the lists that a source gives.
func (c *Config) setLists(l layer) error {
	for _, s := range settings {
		items, given := l.lists[s.key]
		if !given {
			continue
		}
		s.clear(c)
		for _, item := range items {
			if err := s.set(c, item.text); err != nil {
				return fmt.Errorf("%s: %w", item.origin, err)
			}
		}
	}
	return nil
}

// layer is what one source gives. The key of a member is its name. A list that
// is there and empty replaces another by nothing.
type layer struct {
	values  []given
	lists   map[string][]given // items by key
	members []given
}

// addItem adds an item to a list.
func (l *layer) addItem(item given) {
	l.addList(item.key)
	l.lists[item.key] = append(l.lists[item.key], item)
}

// addList says that the source gives a list, be it an empty one.
func (l *layer) addList(key string) {
	if l.lists == nil {
		l.lists = make(map[string][]given)
	}
	l.lists[key] = l.lists[key]
}

func (src *Source) layer() layer {
	var l layer
	for _, s := range settings {
		if f := src.values[s.key]; f != nil && f.set {
			l.values = append(l.values, given{s.key, f.text, "--" + s.flag()})
		}
		if f := src.lists[s.key]; f != nil {
			for _, text := range f.texts {
				l.addItem(given{s.key, text, "--" + s.flag()})
			}
		}
	}
	for _, text := range src.members.texts {
		name, conn, ok := strings.Cut(text, "=")
		if !ok || strings.ContainsAny(name, " :/") || slices.Contains(connKeywords, name) {
			// Perhaps a connection string without a name: an empty one is
			// refused with a hint, and without showing a part of it.
			name, conn = "", text
		}
		l.members = append(l.members, given{name, conn, "--member " + name})
	}
	return l
}

// environment is the layer of variables.
type environment struct {
	layer
	config given // its origin is empty if there is none
}

// orchestrated matches what Kubernetes sets in every container if a service is
// named pgfailproxy; nobody meant those as settings.
var orchestrated = regexp.MustCompile(`^(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)$`)

func readEnviron(environ []string) (environment, error) {
	var e environment
	names := make([]string, 0, len(settings))
	byName := make(map[string]string)
	for _, s := range settings {
		names = append(names, s.env())
		byName[s.env()] = s.key
	}
	names = append(names, envPrefix+strings.ToUpper(configKey))
	memberPrefix := lookup(membersKey).env()
	for _, entry := range environ {
		name, text, _ := strings.Cut(entry, "=")
		rest, ok := strings.CutPrefix(name, envPrefix)
		if !ok || orchestrated.MatchString(rest) {
			continue
		}
		member, isMember := strings.CutPrefix(name, memberPrefix)
		switch key := byName[name]; {
		case isMember:
			e.members = append(e.members, given{strings.ToLower(member), text, name})
		case rest == strings.ToUpper(configKey):
			e.config = given{configKey, text, name}
		case renamed[strings.ToLower(rest)] != "":
			return e, fmt.Errorf("%s: the setting has another name now: set %s%s instead", name, envPrefix, strings.ToUpper(renamed[strings.ToLower(rest)]))
		case key == "":
			return e, fmt.Errorf("%s: there is no such setting%s: unset the variable or mend its name", name, didYouMean(name, names))
		case lookup(key).clear != nil:
			e.addList(key)
			for item := range strings.SplitSeq(text, listSeparator) {
				if item = strings.TrimSpace(item); item != "" {
					e.addItem(given{key, item, name})
				}
			}
		default:
			e.values = append(e.values, given{key, text, name})
		}
	}
	slices.SortFunc(e.members, func(a, b given) int { return strings.Compare(a.key, b.key) })
	return e, nil
}

// FlagError makes pflag's error for a flag that does not exist helpful, and
// keeps what was written after the flag's name out of it; another error is
// returned as it is.
func FlagError(fs *pflag.FlagSet, err error) error {
	var unknown *pflag.NotExistError
	var syntax *pflag.InvalidSyntaxError
	switch {
	case errors.As(err, &syntax):
		return errors.New("a flag is written --name=value or --name value")
	case !errors.As(err, &unknown):
		return err
	}
	var names []string
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	name := "--" + unknown.GetSpecifiedName()
	if short := unknown.GetSpecifiedShortnames(); short != "" {
		// A whole word after one dash: -listen=:6432.
		short, _, _ = strings.Cut(short, "=")
		return fmt.Errorf("unknown flag -%s: the names of settings have two dashes%s", short, didYouMean("--"+short, names))
	}
	if now := renamed[strings.ReplaceAll(unknown.GetSpecifiedName(), "-", "_")]; now != "" {
		return fmt.Errorf("the flag %s has another name now: write --%s", name, strings.ReplaceAll(now, "_", "-"))
	}
	return fmt.Errorf("unknown flag %s%s", name, didYouMean(name, names))
}

// textFlag keeps a flag's text until Load; it refuses nothing, so that errors
// are the same from every source.
type textFlag struct {
	kind string
	text string // the default until set
	set  bool
}

func (f *textFlag) String() string { return f.text }
func (f *textFlag) Type() string   { return f.kind }
func (f *textFlag) Set(text string) error {
	f.text, f.set = text, true
	return nil
}

// listFlag collects a flag that is given once for each item. It neither refuses
// nor shows what it is given, because of --member that may hold a password.
type listFlag struct {
	kind  string
	texts []string
}

func (f *listFlag) String() string { return "" }
func (f *listFlag) Type() string   { return f.kind }
func (f *listFlag) Set(text string) error {
	f.texts = append(f.texts, text)
	return nil
}
