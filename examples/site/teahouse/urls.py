"""The URL of each page."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path

from shop import views

urlpatterns = [
    path("", views.home, name="home"),
    path("quotes/", views.quotes, name="quotes"),
    path("market/", views.market, name="market"),
    path("market/prices/", views.prices, name="prices"),
    path("advice/", views.advice, name="advice"),
    path("advice/answer/", views.answer, name="answer"),
    path("tea-master/", views.tea_master, name="tea_master"),
    path("tea-master/work/", views.tea_master_work, name="tea_master_work"),
    path("uploads/", views.uploads, name="uploads"),
    path("uploads/<uuid:key>/", views.progress, name="progress"),
    path("orders/", views.orders, name="orders"),
    path("load/", views.load, name="load"),
    path("load/report/", views.report, name="report"),
    path("load/figures/", views.load_figures, name="load_figures"),
    path("load/asyncio/", views.load_on_asyncio),
    path("load/visitors/<str:server>/", views.load_visitors, name="load_visitors"),
    path("accounts/login/", LoginView.as_view(), name="login"),
    path("accounts/logout/", LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
]
