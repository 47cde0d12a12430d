package admin

import (
	_ "embed"
	"html/template"
)

//go:embed page.html
var pageText string

// page takes a Status. Everything in it is escaped.
var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"headline": headline,
	"row":      func(s Status, m Member) [9]string { return s.row(m) },
	"story":    story,
}).Parse(pageText))
